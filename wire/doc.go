// Package wire serves Google's Cloud Composer services, and others beside them,
// over gRPC and REST on one port and from one implementation.
//
// It owns the translation: Google's messages to the domain's types and back
// ([EnvironmentOf], [OperationOf]), the domain's errors to statuses
// ([Status]), the versions of the API, and the fields that the REST API has and
// Google's servicepb lacks. [New] returns the http.Handler of everything.
//
// It decides nothing about environments: every rule is the domain's. What is
// not served is refused by name with UNIMPLEMENTED and what to use instead,
// never with an empty success.
//
// To debug it, ask the server itself: gRPC reflection lists every service with
// all fields, and an error that the client sees as "internal" has an id under
// which the log has it in full.
package wire
