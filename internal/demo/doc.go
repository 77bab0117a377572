// Package demo is the main job of telemap, acted out on this machine and checked:
// one process serves a region, another mounts it, this one uses the file as any
// program would and compares every byte.
package demo
