// Package kubeapi is a small client of the Kubernetes API for the node agent.
//
// It owns how the API is reached (a Pod's service account, or a kubeconfig),
// reading, patching and creating single objects as JSON, and following a few of
// them, see [Follow]. It speaks HTTP/1.1: a watch is one connection.
//
// It refuses what would make every node carry much for little: caches of whole
// kinds, discovery, other encodings, and kubeconfigs whose credentials need
// another program. No call repeats itself: only Follow does; everybody else gets
// a typed error, see [StatusError], and with [RetryAfter] how long to wait.
//
// To debug it, run the agent with --v=4, and read the API server's audit log:
// the user agent is "ip-masq-agent/VERSION".
package kubeapi
