// Package probe finds out what this machine can do for telemap, by trying: it
// opens, maps and asks, and undoes what it did. It answers three questions: what
// is there ([Entry]), what to do to get what is not, and which mechanism each view
// of a region would use and why ([View]).
//
//	report := probe.Run(ctx)
//	report.WriteText(os.Stdout)
//
// It needs no rights, changes nothing, loads no module, never fails and takes at
// most two seconds. A limit that only a real mount or device would meet, such as
// a security module's policy, it cannot see.
package probe
