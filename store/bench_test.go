package store_test

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"sordino/environment"
	"sordino/store"
	"sordino/store/storetest"
)

// stored is a database with n environments in it and a succeeded create of
// each.
func stored(tb testing.TB, n int) *store.Store {
	s := storetest.Open(tb)
	fill(tb, s, n)
	return s
}

func fill(tb testing.TB, s *store.Store, n int) {
	update(tb, s, func(tx environment.Tx) error {
		for i := range n {
			e := number(i)
			e.State = environment.Running
			o := createOf(e)
			o.State, o.Ended, o.Result = environment.Succeeded, e.Updated, e
			if err := errors.Join(tx.PutEnvironment(e), tx.PutOperation(o)); err != nil {
				return err
			}
		}
		return nil
	})
}

// percentiles reports what single calls took.
func percentiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// A durable create: environment, reservations, operation and request id.
func BenchmarkCreate(b *testing.B) {
	s := storetest.Open(b)
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		e := number(i)
		o := createOf(e)
		start := time.Now()
		update(b, s, func(tx environment.Tx) error {
			return errors.Join(tx.PutEnvironment(e), tx.PutOperation(o), tx.PutRequest("p", e.UUID, environment.Request{Fingerprint: "f", Operation: o.Name, Created: o.Created}))
		})
		took = append(took, time.Since(start))
	}
	percentiles(b, took)
}

func BenchmarkGetOf10000(b *testing.B) {
	s := stored(b, 10_000)
	var took []time.Duration
	for b.Loop() {
		n := number(rand.IntN(10_000)).Name
		start := time.Now()
		view(b, s, func(tx environment.Tx) error { _, err := tx.Environment(n); return err })
		took = append(took, time.Since(start))
	}
	percentiles(b, took)
}

func BenchmarkListPageOf1000(b *testing.B) {
	s := stored(b, 10_000)
	for b.Loop() {
		view(b, s, func(tx environment.Tx) error {
			list, err := tx.Environments(environment.EnvironmentQuery{Project: "p", Location: here.ID, After: number(4999).Name, Limit: 1000})
			if len(list) != 1000 {
				b.Fatal(len(list))
			}
			return err
		})
	}
}

func BenchmarkReservationsOf10000(b *testing.B) {
	s := stored(b, 10_000)
	for b.Loop() {
		view(b, s, func(tx environment.Tx) error {
			list, err := tx.Reservations(number(0).Plan.Network)
			if len(list) != 60_000 {
				b.Fatal(len(list))
			}
			return err
		})
	}
}

func BenchmarkOpenWith10000(b *testing.B) {
	folder := storetest.Folder(b)
	s, err := store.Open(folder)
	if err != nil {
		b.Fatal(err)
	}
	fill(b, s, 10_000)
	_ = s.Close()
	for b.Loop() {
		s, err := store.Open(folder)
		if err != nil {
			b.Fatal(err)
		}
		view(b, s, func(tx environment.Tx) error {
			_, err := tx.Environments(environment.EnvironmentQuery{Unsettled: true})
			return err
		})
		b.StopTimer()
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "heap-MiB")
		_ = s.Close()
		b.StartTimer()
	}
}
