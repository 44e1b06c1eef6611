package store

import (
	"context"
	"embed"
	"fmt"
	"io/fs"

	"sordino/environment"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// applicationID marks the file as ours (PRAGMA application_id): "SoDi".
const applicationID = 0x536f4469

// loadMigrations reads the migrations: NNNN_what.sql, from 0001 without gaps.
func loadMigrations(folder fs.FS) ([]string, error) {
	names, err := fs.Glob(folder, "migrations/*.sql") // sorted
	if err != nil {
		return nil, err
	}
	var scripts []string
	for i, name := range names {
		if want := fmt.Sprintf("migrations/%04d_", i+1); len(name) < len(want) || name[:len(want)] != want {
			return nil, fmt.Errorf("migration %d is named %s, not %s…", i+1, name, want)
		}
		text, err := fs.ReadFile(folder, name)
		if err != nil {
			return nil, err
		}
		scripts = append(scripts, string(text))
	}
	return scripts, nil
}

// migrate brings the schema up to the last script. Each script and the new
// version number are one transaction.
func migrate(c *conn, path string, scripts []string) error {
	ctx := context.Background()
	var id, tables, version int
	if err := c.sql.QueryRowContext(ctx, "SELECT application_id, (SELECT count(*) FROM sqlite_schema), user_version FROM pragma_application_id, pragma_user_version").Scan(&id, &tables, &version); err != nil {
		return err
	}
	if id != applicationID && (id != 0 || tables != 0) {
		return &environment.Error{Code: environment.FailedPrecondition, Reason: "STORE_FOREIGN",
			Message:  fmt.Sprintf("%s is a database of another program: choose another data folder", path),
			Metadata: map[string]string{"database": path}}
	}
	if version > len(scripts) {
		return &environment.Error{Code: environment.FailedPrecondition, Reason: "STORE_NEWER",
			Message:  fmt.Sprintf("the database %s was written by a newer version of this program (schema %d; this one knows %d): run that version, or put a backup from before the upgrade in its place", path, version, len(scripts)),
			Metadata: map[string]string{"database": path}}
	}
	for ; version < len(scripts); version++ {
		script := fmt.Sprintf("BEGIN IMMEDIATE; PRAGMA application_id = %d; PRAGMA user_version = %d; %s; COMMIT", applicationID, version+1, scripts[version])
		if _, err := c.sql.ExecContext(ctx, script); err != nil {
			_, _ = c.sql.ExecContext(ctx, "ROLLBACK")
			return fmt.Errorf("migration %d: %w", version+1, err)
		}
	}
	return nil
}
