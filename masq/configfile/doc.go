// Package configfile reads the agent's configuration from files.
//
// It owns the syntax: YAML or JSON, upstream's keys and ours, one file or a
// folder of them. Every value keeps file, line and column, and every complaint
// names them, the offending text and what to write instead.
//
// It refuses what could only fail later, such as a prefix that the kernel
// would not take, and it refuses an empty list item, which upstream turns into
// a list of one prefix that nobody wrote. What upstream accepts otherwise has
// upstream's meaning here.
//
// To debug a file, run "ip-masq-agent lint FILE".
package configfile
