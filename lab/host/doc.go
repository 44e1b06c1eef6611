// Package host keeps labs and their agents in one process that outlives those
// who use it: a server that is killed finds its clusters as it left them.
//
// It owns the process and everything in it: namespaces, mounts, agents,
// commands. There is one host a folder, which a lock sees to; it has a
// network, mounts and processes of its own, so that with it goes all that it
// made. [Connect] finds it or starts it, a [Client] asks it over a socket in
// the folder, [Main] is the process itself.
//
// It refuses other users (by the socket's credentials) and other versions of
// [Protocol]: a host that speaks another one is replaced, and whoever drives it
// builds the labs again. It keeps nothing on disk but the socket, the lock and
// its log.
//
// To debug it, read host.log in the folder; "sordino lab status" and "sordino
// lab exec" with --data look inside.
package host
