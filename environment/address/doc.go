// Package address plans an environment's addresses: which ranges its nodes,
// Pods, Services, control plane, web server and database use.
//
// It owns the arithmetic of GKE's VPC-native networks and every rule about
// ranges: syntax, alignment, size, allowed and reserved space, overlap. It is
// pure: [NewPlan] is a function of a [Request], the declared [Network] and what
// is [Reservation]s already, and gives the same plan for the same input.
//
// It refuses to repair: a range that is wrong is a violation with the range to
// write instead, and all violations are found at once.
//
// To debug it, read Plan.Explain: it names every range, who chose it, and what
// it has room for.
package address
