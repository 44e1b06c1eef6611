// Package store keeps environments and operations in SQLite: one file,
// sordino.db, in the server's data folder.
//
// It owns the file, its schema and its migrations, and the encoding of rows. A
// transaction that returned nil is on disk: WAL with synchronous=FULL. There
// is one writer and several readers; a reader sees one state from its first
// read to its end and never waits for the writer.
//
// It refuses a folder that another server holds, a database that a newer
// program has written, and a file that is none of ours. A write that the disk
// does not take changes nothing, and its error (code Unavailable) says what to
// do.
//
// To debug it, open the file with sqlite3 while the server runs:
//
//	sqlite3 -readonly sordino.db 'SELECT id, state, document FROM environments'
//
// Copy it with [Backup], never with cp: the newest rows are in
// sordino.db-wal.
package store
