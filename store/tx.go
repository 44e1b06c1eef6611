package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"sordino/environment"
)

// tx implements [environment.Tx].
type tx struct {
	ctx       context.Context
	conn      *conn // nil once the transaction has ended
	path      string
	documents *documents
	reserved  *reservations // nil where nothing is written
	write     bool
}

// ready tells before every statement whether there is a transaction to run it in.
func (t *tx) ready(write bool) error {
	switch {
	case t.conn == nil:
		return errors.New("the transaction has ended")
	case write && !t.write:
		return errors.New("a View writes nothing: use Update")
	case t.ctx.Err() != nil:
		return context.Cause(t.ctx)
	}
	return nil
}

func (t *tx) exec(query string, arguments ...any) error {
	if err := t.ready(true); err != nil {
		return err
	}
	return explain(t.path, t.conn.exec(query, arguments...))
}

func (t *tx) query(query string, arguments []any, each func(*sql.Rows) error) error {
	if err := t.ready(false); err != nil {
		return err
	}
	return explain(t.path, t.conn.query(query, arguments, func(rows *sql.Rows) error {
		if t.ctx.Err() != nil {
			return context.Cause(t.ctx)
		}
		return each(rows)
	}))
}

// selection is the WHERE and what follows it.
type selection struct {
	conditions []string
	arguments  []any
}

func (s *selection) and(condition string, arguments ...any) {
	s.conditions = append(s.conditions, condition)
	s.arguments = append(s.arguments, arguments...)
}

func (s *selection) query(columns, order string, limit int) (string, []any) {
	if len(s.conditions) > 0 {
		columns += " WHERE " + strings.Join(s.conditions, " AND ")
	}
	if columns += " ORDER BY " + order; limit > 0 {
		return columns + " LIMIT ?", append(s.arguments, limit)
	}
	return columns, s.arguments
}

const environmentColumns = "SELECT key, project, location, id, uuid, state, created, updated, generation, revision, cluster, config FROM environments"

func (t *tx) Environment(name environment.Name) (*environment.Environment, error) {
	list, err := t.environments(environmentColumns+" WHERE project = ? AND location = ? AND id = ?", name.Project, name.Location.ID, name.ID)
	if err == nil && len(list) == 0 {
		err = environment.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

func (t *tx) Environments(q environment.EnvironmentQuery) ([]*environment.Environment, error) {
	var s selection
	if q.Project != "" {
		s.and("project = ?", q.Project)
	}
	if q.Location != "" {
		s.and("location = ?", q.Location)
	}
	if q.After != (environment.Name{}) {
		s.and("(project, location, id) > (?, ?, ?)", q.After.Project, q.After.Location.ID, q.After.ID)
	}
	if q.Unsettled {
		s.and("state IN (1, 3, 4)") // environment.Unsettled, as the index's condition has it
	}
	query, arguments := s.query(environmentColumns, "project, location, id", q.Limit)
	return t.environments(query, arguments...)
}

func (t *tx) environments(query string, arguments ...any) (list []*environment.Environment, err error) {
	type row struct {
		environmentRecord
		key   int64
		known bool // the document is
	}
	var found []row
	if err := t.query(query, arguments, func(rows *sql.Rows) error {
		var r row
		var config any // an empty message is an empty blob, and not NULL
		if err := rows.Scan(&r.key, &r.Name.Project, &r.Name.Location.ID, &r.Name.ID, &r.UUID, &r.State, &r.Created, &r.Updated, &r.Generation, &r.Revision, &r.Cluster, &config); err != nil {
			return err
		}
		// In a transaction that writes, a revision may be one that never comes to be.
		if !t.write {
			r.environmentDocument, r.known = t.documents.get(r.UUID, r.Revision)
		}
		if data, present := config.([]byte); present {
			r.Spec.Config = append(message{}, data...)
		}
		found = append(found, r)
		return nil
	}); err != nil {
		return nil, err
	}
	for _, r := range found {
		if !r.known {
			config := r.Spec.Config
			if err := t.query("SELECT document FROM environments WHERE key = ?", []any{r.key}, func(rows *sql.Rows) error {
				var text sql.RawBytes
				if err := rows.Scan(&text); err != nil {
					return err
				}
				return json.Unmarshal(text, &r.environmentDocument)
			}); err != nil {
				return nil, fmt.Errorf("the stored environment %s: %w", r.Name, err)
			}
			if !t.write {
				t.documents.put(r.UUID, r.Revision, r.environmentDocument)
			}
			r.Spec.Config = config
		}
		e, err := r.decode()
		if err != nil {
			return nil, fmt.Errorf("the stored environment %s: %w", r.Name, err)
		}
		list = append(list, e)
	}
	return list, nil
}

func (t *tx) EnvironmentNames() (map[string]environment.Name, error) {
	names := map[string]environment.Name{}
	err := t.query("SELECT uuid, project, location, id FROM environments", nil, func(rows *sql.Rows) error {
		var uuid string
		var name environment.Name
		err := rows.Scan(&uuid, &name.Project, &name.Location.ID, &name.ID)
		names[uuid] = name
		return err
	})
	return names, err
}

func (t *tx) ClusterHolders() (map[string]environment.Name, error) {
	holders := map[string]environment.Name{}
	err := t.query("SELECT cluster, project, location, id FROM environments WHERE cluster <> ''", nil, func(rows *sql.Rows) error {
		var cluster string
		var name environment.Name
		err := rows.Scan(&cluster, &name.Project, &name.Location.ID, &name.ID)
		holders[cluster] = name
		return err
	})
	return holders, err
}

func (t *tx) PutEnvironment(e *environment.Environment) error {
	r, err := encodeEnvironment(e)
	if err != nil {
		return fmt.Errorf("storing %s: %w", e.Name, err)
	}
	config := []byte(r.Spec.Config)
	r.Spec.Config = nil
	document, err := json.Marshal(r.environmentDocument)
	if err != nil {
		return fmt.Errorf("storing %s: %w", e.Name, err)
	}
	if err := t.ready(true); err != nil {
		return err
	}
	// The key comes back from either; no row is a conflict.
	var key int64
	each := func(rows *sql.Rows) error { return rows.Scan(&key) }
	if e.Revision == 0 {
		err = t.query(`INSERT INTO environments (project, location, id, uuid, state, created, updated, generation, revision, cluster, config, document)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING key`,
			[]any{e.Name.Project, e.Name.Location.ID, e.Name.ID, e.UUID, r.State, r.Created, r.Updated, r.Generation, r.Cluster, config, string(document)}, each)
	} else {
		// The UUID tells it from one that was created again under its name.
		err = t.query(`UPDATE environments SET state = ?, created = ?, updated = ?, generation = ?, revision = revision + 1, cluster = ?, config = ?, document = ?
			WHERE project = ? AND location = ? AND id = ? AND uuid = ? AND revision = ? RETURNING key`,
			[]any{r.State, r.Created, r.Updated, r.Generation, r.Cluster, config, string(document),
				e.Name.Project, e.Name.Location.ID, e.Name.ID, e.UUID, e.Revision}, each)
	}
	if err != nil {
		return err
	}
	if key == 0 {
		return fmt.Errorf("%s: %w", e.Name, environment.ErrConflict)
	}
	if err := t.reserve(key, e); err != nil {
		return err
	}
	e.Revision++
	return nil
}

func (t *tx) DeleteEnvironment(name environment.Name) error {
	err := t.exec("DELETE FROM environments WHERE project = ? AND location = ? AND id = ?", name.Project, name.Location.ID, name.ID)
	if err == nil {
		t.reserved.replace(name, false, "", nil)
	}
	return err
}

const operationColumns = "SELECT project, location, id, target_uuid, created, ended, document FROM operations"

func (t *tx) Operation(name environment.OperationName) (*environment.Operation, error) {
	list, err := t.operations(operationColumns+" WHERE project = ? AND location = ? AND id = ?", name.Project, name.Location.ID, name.ID)
	if err == nil && len(list) == 0 {
		err = environment.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

func (t *tx) Operations(q environment.OperationQuery) ([]*environment.Operation, error) {
	var s selection
	if q.Project != "" {
		s.and("project = ?", q.Project)
	}
	if q.Location != "" {
		s.and("location = ?", q.Location)
	}
	if q.Before != nil {
		s.and("(created, id) < (?, ?)", nanoseconds(q.Before.Created), q.Before.Name.ID)
	}
	if q.Unfinished {
		s.and("done = 0")
	}
	if !q.EndedBefore.IsZero() {
		s.and("done = 1 AND ended < ?", nanoseconds(q.EndedBefore))
	}
	query, arguments := s.query(operationColumns, "created DESC, id DESC", q.Limit)
	return t.operations(query, arguments...)
}

func (t *tx) RunningOperation(environmentUUID string) (*environment.Operation, error) {
	list, err := t.operations(operationColumns+" WHERE target_uuid = ? AND done = 0", environmentUUID)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return list[0], nil
}

func (t *tx) operations(query string, arguments ...any) (list []*environment.Operation, err error) {
	err = t.query(query, arguments, func(rows *sql.Rows) error {
		var o environment.Operation
		var created, ended int64
		var document sql.RawBytes
		if err := rows.Scan(&o.Name.Project, &o.Name.Location.ID, &o.Name.ID, &o.TargetUUID, &created, &ended, &document); err != nil {
			return err
		}
		o.Created, o.Ended = moment(created), moment(ended)
		if err := decodeOperation(&o, document); err != nil {
			return err
		}
		list = append(list, &o)
		return nil
	})
	return list, err
}

func (t *tx) PutOperation(o *environment.Operation) error {
	document, err := encodeOperation(o)
	if err != nil {
		return fmt.Errorf("storing %s: %w", o.Name, err)
	}
	return t.exec(`INSERT INTO operations (project, location, id, target_uuid, created, ended, done, document) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (project, location, id) DO UPDATE SET
			target_uuid = excluded.target_uuid, created = excluded.created, ended = excluded.ended, done = excluded.done, document = excluded.document`,
		o.Name.Project, o.Name.Location.ID, o.Name.ID, o.TargetUUID, nanoseconds(o.Created), nanoseconds(o.Ended), o.Done(), document)
}

func (t *tx) DeleteOperation(name environment.OperationName) error {
	return t.exec("DELETE FROM operations WHERE project = ? AND location = ? AND id = ?", name.Project, name.Location.ID, name.ID)
}

func (t *tx) Request(project, id string) (environment.Request, error) {
	var r environment.Request
	found := false
	err := t.query("SELECT fingerprint, created, operation_project, operation_location, operation_id FROM requests WHERE project = ? AND id = ?", []any{project, id}, func(rows *sql.Rows) error {
		found = true
		var created int64
		if err := rows.Scan(&r.Fingerprint, &created, &r.Operation.Project, &r.Operation.Location.ID, &r.Operation.ID); err != nil {
			return err
		}
		r.Created = moment(created)
		return nil
	})
	if err == nil && !found {
		err = environment.ErrNotFound
	}
	return r, err
}

func (t *tx) PutRequest(project, id string, r environment.Request) error {
	return t.exec(`INSERT INTO requests (project, id, fingerprint, created, operation_project, operation_location, operation_id) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (project, id) DO UPDATE SET
			fingerprint = excluded.fingerprint, created = excluded.created,
			operation_project = excluded.operation_project, operation_location = excluded.operation_location, operation_id = excluded.operation_id`,
		project, id, r.Fingerprint, nanoseconds(r.Created), r.Operation.Project, r.Operation.Location.ID, r.Operation.ID)
}
