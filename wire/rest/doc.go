// Package rest serves gRPC services as REST, by the google.api.http annotations
// in their descriptors.
//
// It owns the way from an HTTP request to a call of a service's method and
// back: paths, query parameters, Google's system parameters, lenient JSON,
// partial responses, and Google's error envelope. It knows no service: a
// generated one is served by handing its descriptor and its implementation to
// [New]. No path stands here: Composer's come with servicepb and from
// wire/additions.go, those of our own from the .proto files below api/.
//
// It refuses what it does not understand, with every fault of the body at once
// and the place of each: unknown fields, wrong types, fields given twice,
// unknown query parameters. Only Google's system parameters are never refused.
//
// To debug it, read [Handler.Routes]: every route it knows, with the method
// that it calls.
package rest
