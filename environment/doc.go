// Package environment is the environments server's domain: what an environment
// is, what may be asked of it, and which states it passes.
//
// It owns [Environment], [Operation], the rules that a request must keep
// ([Service]) and the interface of the durable [Store] that they are kept in.
// Address arithmetic is in address, image versions are in image. A configuration
// is the API's own message (servicepb), so that no field is lost between what was
// asked for and what is told; beyond that it knows no wire format, no SQL and no
// kernel: wire translates requests, store keeps rows, reconcile brings about what
// the rows say.
//
// It refuses what could not be kept: every rule is checked before anything is
// stored, all violations are reported at once ([Error].Violations), and what
// was accepted is durable before the caller is answered.
//
// To debug it, ask for a create with ValidateOnly: the answer is the whole
// plan, and nothing is stored.
package environment
