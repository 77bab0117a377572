// Package linux holds every raw system call and every parser of /proc and /sys
// that telemap needs, so that the packages above read without them. It decides
// nothing: each function does one thing and returns the kernel's answer.
//
// It has no functions on other systems; only files for Linux import it.
package linux
