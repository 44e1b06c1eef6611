package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"sordino/store"
)

func backupCommand() *cobra.Command {
	var w where
	c := &cobra.Command{
		Use:   "backup FILE",
		Short: "Copy the database of this machine's server, which may go on running",
		Long: `Writes a whole, compact copy of the server's database to a file that must not
exist yet. To go back to it, stop the server, put the file into the data folder
as sordino.db, remove sordino.db-wal and sordino.db-shm, and start the server:
it makes the clusters what the copy says.`,
		Example: "  sordino backup /var/backups/sordino-$(date +%F).db",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			dir, err := w.dir()
			if err != nil {
				return err
			}
			path, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			if err := store.Backup(c.Context(), dir, path); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "wrote %s\n", path)
			return nil
		},
	}
	c.Flags().StringVar(&w.data, "data", "", "the folder of the server's data (default $XDG_STATE_HOME/sordino, or ~/.local/state/sordino)")
	return c
}
