// Package remote stores a region's bytes at another host: a backend whose every
// operation is a request of a transport.
package remote
