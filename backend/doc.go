// Package backend says what it takes to store the bytes of a region: the
// [Backend] interface, the abilities that a backend may have on top, helpers
// that use an ability where it is present and fall back where it is not, and
// adapters from and to the interfaces of package io.
//
// Implementations are the packages below this one: mem, file and dir store
// bytes here; remote asks another host. The wrappers retry, limit, trace and
// flaky take a backend and are one. Each passes backendtest, the suite that
// states the contract check by check. A store that only knows whole chunks, such
// as one object per chunk, becomes a Backend through package chunked.
//
// This package opens nothing and knows no URL; the root package does.
package backend
