package store

import (
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"sordino/environment"
)

func TestMigrations(t *testing.T) {
	folder := t.TempDir()
	version := func() (n int, tables string) {
		db, err := sql.Open("sqlite", filepath.Join(folder, Name))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if err := db.QueryRow("SELECT user_version, (SELECT coalesce(group_concat(name), '') FROM sqlite_schema) FROM pragma_user_version").Scan(&n, &tables); err != nil {
			t.Fatal(err)
		}
		return n, tables
	}
	try := func(scripts ...string) error {
		s, err := open(folder, scripts)
		if err == nil {
			err = s.Close()
		}
		return err
	}
	one, two := "CREATE TABLE one (x)", "CREATE TABLE two (x)"
	if err := try(one); err != nil {
		t.Fatal(err)
	}
	// A script is done whole or not at all.
	if err := try(one, two+"; CREATE TABLE one (x)"); err == nil || !strings.Contains(err.Error(), "migration 2") {
		t.Errorf("a script that cannot be run: %v", err)
	}
	if n, tables := version(); n != 1 || tables != "one" {
		t.Errorf("after it: version %d, %s", n, tables)
	}
	if err := try(one, two); err != nil {
		t.Error(err)
	}
	if n, tables := version(); n != 2 || tables != "one,two" {
		t.Errorf("after the second: version %d, %s", n, tables)
	}
	var e *environment.Error
	if err := try(one); !errors.As(err, &e) || e.Reason != "STORE_NEWER" || !strings.Contains(e.Message, "schema 2; this one knows 1") {
		t.Errorf("an older program: %v", err)
	}
	if err := try(one, two); err != nil {
		t.Errorf("after the older program: %v", err)
	}
}

func TestForeignDatabase(t *testing.T) {
	folder := t.TempDir()
	db, err := sql.Open("sqlite", filepath.Join(folder, Name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("CREATE TABLE theirs (x)"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	var e *environment.Error
	if _, err := Open(folder); !errors.As(err, &e) || e.Reason != "STORE_FOREIGN" {
		t.Errorf("another program's database: %v", err)
	}
}

func TestMigrationNames(t *testing.T) {
	for _, names := range [][]string{{"0002_x.sql"}, {"0001_x.sql", "0003_x.sql"}, {"0001_x.sql", "0001_y.sql"}, {"1.sql"}} {
		files := fstest.MapFS{}
		for _, name := range names {
			files["migrations/"+name] = &fstest.MapFile{}
		}
		if _, err := loadMigrations(files); err == nil {
			t.Errorf("%v is taken", names)
		}
	}
}

// A database from before existing clusters is read as it was.
func TestMigrationOfClusters(t *testing.T) {
	folder := t.TempDir()
	scripts, err := loadMigrations(migrationFiles)
	if err != nil {
		t.Fatal(err)
	}
	old, err := open(folder, scripts[:1])
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", filepath.Join(folder, Name))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"one", "two"} {
		if _, err := db.Exec(`INSERT INTO environments (project, location, id, uuid, state, created, updated, generation, revision, config, document)
			VALUES ('p', 'l', ?, ?, 2, 1, 1, 1, 1, NULL, '{}')`, id, id); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.View(t.Context(), func(tx environment.Tx) error {
		list, err := tx.Environments(environment.EnvironmentQuery{})
		if len(list) != 2 || list[0].Cluster != "" || list[1].Name.ID != "two" {
			t.Errorf("got %+v", list)
		}
		holders, errHolders := tx.ClusterHolders()
		if len(holders) != 0 {
			t.Errorf("holders %v", holders)
		}
		return errors.Join(err, errHolders)
	}); err != nil {
		t.Fatal(err)
	}
}
