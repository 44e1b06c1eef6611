// Package access decides who may do what.
//
// It owns callers ([Principal]), what they may do ([Role] by project), the ways
// to prove who one is (bearer tokens from a file, OIDC), the guard against
// other web pages and too many requests, the server's certificate, and the
// audit log. It refuses everybody whom it does not know, before it tells
// anything about what exists (AIP-211).
//
// To debug it, read the audit log: it has a line for every call that changed
// something or was refused, with the caller and the reason.
package access
