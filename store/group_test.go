package store_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"sordino/environment"
	"sordino/store"
	"sordino/store/storetest"
)

// commits counts the transactions in the write-ahead log: the last page of each
// has the size of the database in its header (sqlite.org/fileformat2.html).
func commits(t *testing.T, folder string) (n int) {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(folder, store.Name+"-wal"))
	if err != nil {
		t.Fatal(err)
	}
	const header, frameHeader = 32, 24
	page := int(binary.BigEndian.Uint32(log[8:]))
	for at := header; at+frameHeader+page <= len(log); at += frameHeader + page {
		if binary.BigEndian.Uint32(log[at+4:]) != 0 {
			n++
		}
	}
	return n
}

// Updates that wait for one another go to the disk together, and one that
// fails, panics or is given up takes no other with it.
func TestUpdatesGoToTheDiskTogether(t *testing.T) {
	folder := storetest.Folder(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := store.Open(folder)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		before := commits(t, folder)
		mine := errors.New("mine")
		release := make(chan bool)
		var all sync.WaitGroup
		const many = 20
		for i := range many {
			all.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				defer func() {
					if panicked := recover() != nil; panicked != (i%5 == 2) {
						t.Errorf("%d: panicked: %v", i, panicked)
					}
				}()
				err := s.Update(ctx, func(tx environment.Tx) error {
					if i == 0 {
						<-release
					}
					err := tx.PutEnvironment(number(i))
					switch i % 5 {
					case 1:
						err = errors.Join(err, mine)
					case 2:
						panic(mine)
					case 3:
						cancel()
					}
					return err
				})
				if want := map[int]error{1: mine, 3: context.Canceled}[i%5]; !errors.Is(err, want) {
					t.Errorf("%d: %v, not %v", i, err, want)
				}
			})
			synctest.Wait() // it has the writer, or waits for it
		}
		close(release)
		all.Wait()
		if n := commits(t, folder) - before; n != 1 {
			t.Errorf("%d commits", n)
		}
		view(t, s, func(tx environment.Tx) error {
			list, err := tx.Environments(environment.EnvironmentQuery{})
			var names, want []string
			for _, e := range list {
				names = append(names, e.Name.ID)
			}
			for i := range many {
				if i%5 == 0 || i%5 == 4 {
					want = append(want, number(i).Name.ID)
				}
			}
			if fmt.Sprint(names) != fmt.Sprint(want) {
				t.Errorf("stored are %v, not %v", names, want)
			}
			return err
		})
	})
}

// When the disk is full for one of a group, everybody whose update is lost
// hears of it.
func TestDiskFullForManyAtOnce(t *testing.T) {
	if !inPrivateMounts(t) {
		return
	}
	disk := t.TempDir()
	if err := unix.Mount("none", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(disk, 0)
	s, err := store.Open(filepath.Join(disk, "data"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var mu sync.Mutex
	kept := map[string]bool{}
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			for i := 0; ; i++ {
				e := number(1000*worker + i)
				err := s.Update(t.Context(), func(tx environment.Tx) error {
					return errors.Join(tx.PutEnvironment(e), tx.PutOperation(createOf(e)))
				})
				if err != nil {
					unavailable(t, err, "STORE_DISK_FULL", "nothing was stored")
					return
				}
				mu.Lock()
				kept[e.Name.String()] = true
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if len(kept) == 0 {
		t.Error("nothing fitted")
	}
	view(t, s, func(tx environment.Tx) error {
		list, err := tx.Environments(environment.EnvironmentQuery{})
		if len(list) != len(kept) {
			t.Errorf("%d are stored of %d", len(list), len(kept))
		}
		for _, e := range list {
			if !kept[e.Name.String()] {
				t.Errorf("%s is stored, and its update failed", e.Name)
			}
		}
		return err
	})
}
