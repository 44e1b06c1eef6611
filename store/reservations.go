package store

import (
	"database/sql"
	"fmt"
	"net/netip"
	"slices"

	"sordino/environment"
	"sordino/environment/address"
)

// reservations are lists of networks as the open transaction sees them. Every
// plan is made against all of its network's, and reading them takes longer than
// everything else in a create. They belong to who holds the writer.
type reservations struct {
	lists map[string][]address.Reservation
	// changed says that what is here may not come to be.
	changed bool
}

func (r *reservations) forget() { r.lists, r.changed = nil, false }

// replace puts an owner's reservations in the place of earlier ones. Lists that
// were handed out are never written.
func (r *reservations) replace(owner environment.Name, fresh bool, in string, reserved []address.Reservation) {
	r.changed = true
	name := owner.String()
	for network, list := range r.lists {
		if !fresh {
			r.lists[network] = slices.Collect(func(yield func(address.Reservation) bool) {
				for _, one := range list {
					if one.Owner != name && !yield(one) {
						return
					}
				}
			})
		}
		if network == in {
			r.lists[network] = append(r.lists[network], reserved...)
		}
	}
}

// reserve replaces what an environment reserves, where it is another.
func (t *tx) reserve(key int64, e *environment.Environment) error {
	network, list := e.Plan.Network, e.Reservations()
	fresh := e.Revision == 0
	if !fresh {
		had, err := t.reservations("r.environment = ?", key)
		if err != nil {
			return err
		}
		if len(had) == 0 {
			fresh = true
		} else if had[0].network == network && slices.EqualFunc(had, list, func(a reservation, b address.Reservation) bool { return a.Reservation == b }) {
			return nil
		} else if err := t.exec("DELETE FROM reservations WHERE environment = ?", key); err != nil {
			return err
		}
	}
	for _, r := range list {
		if err := t.exec("INSERT INTO reservations (environment, network, prefix, kind) VALUES (?, ?, ?, ?)", key, network, r.Prefix.String(), string(r.Kind)); err != nil {
			return err
		}
	}
	t.reserved.replace(e.Name, fresh, network, list)
	return nil
}

func (t *tx) Reservations(network string) ([]address.Reservation, error) {
	if err := t.ready(false); err != nil {
		return nil, err
	}
	if t.reserved != nil {
		if list, known := t.reserved.lists[network]; known {
			return slices.Clip(list), nil
		}
	}
	stored, err := t.reservations("r.network = ?", network)
	if err != nil {
		return nil, err
	}
	list := make([]address.Reservation, len(stored))
	for i, r := range stored {
		list[i] = r.Reservation
	}
	if t.reserved != nil {
		if t.reserved.lists == nil {
			t.reserved.lists = map[string][]address.Reservation{}
		}
		t.reserved.lists[network] = list
	}
	return slices.Clip(list), nil
}

type reservation struct {
	network string
	address.Reservation
}

func (t *tx) reservations(condition string, argument any) (list []reservation, err error) {
	var last environment.Name // many rows in a row have the same owner
	var owner string
	err = t.query(`SELECT e.project, e.location, e.id, r.network, r.prefix, r.kind
		FROM reservations r JOIN environments e ON e.key = r.environment WHERE `+condition+` ORDER BY r.rowid`, []any{argument}, func(rows *sql.Rows) error {
		var name environment.Name
		var prefix, kind string
		var r reservation
		if err := rows.Scan(&name.Project, &name.Location.ID, &name.ID, &r.network, &prefix, &kind); err != nil {
			return err
		}
		if name != last || owner == "" {
			last, owner = name, name.String()
		}
		var err error
		if r.Prefix, err = netip.ParsePrefix(prefix); err != nil {
			return fmt.Errorf("a stored reservation of %s: %w", name, err)
		}
		r.Kind, r.Owner = address.Kind(kind), owner
		list = append(list, r)
		return nil
	})
	return list, err
}
