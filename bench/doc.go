// Command bench measures telemap beside its limits and its peers and prints
// ratios.
//
//	go run ./bench                        # everything, some minutes
//	go run ./bench --list                 # the rows
//	go run ./bench --only cold-read       # rows whose id matches
//	go run ./bench --json out.json --svg out.svg
//
// A row says what was measured, the figure as median [min–max] of the rounds,
// the figure it stands beside, the ratio of the two and the target. Within a
// group the sides take turns, A B C A B C, because a shared machine drifts; the
// ratio is the median of the rounds' ratios, so that drift between rounds falls
// out, and may differ from the quotient of the two medians.
//
// Servers, mounts and peers are processes of their own, the telemap program
// built at the start. Files are full of random bytes. Cold means a new mount,
// with no page of the file in the kernel's cache and none local; the files behind
// the servers are in tmpfs for every side. Timers start before the open or the
// dial. What the timed part read is checked by a sample of every page, and all of
// it once more afterwards, outside the timed part.
//
// The peer is nbdkit's file plugin and nbdfuse over a unix socket, installed with
// apt-get where that is possible; without them their rows say so.
//
// The exit code is 0 even if targets are missed: this is a report. It is 1 if
// something failed or bytes were wrong.
package main
