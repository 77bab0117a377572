// Package retry repeats operations that may succeed when they are tried again.
//
//	b := retry.New(remote, retry.Options{Budget: time.Minute, Logger: log})
//
// An operation whose error is [backend.Retryable] is tried again after a pause
// that is drawn from a range which doubles from try to try ("full jitter"), until
// it succeeds or the budget of that one operation is spent. Then the last error
// is returned, wrapped. A read or write that got part of the way goes on from
// there. Errors that trying again cannot cure are returned at once, and so is the
// context's.
//
// Repeating is safe because every operation of a backend may be repeated: a
// write stores the same bytes at the same place. A backend whose Sync failed
// must therefore not return nil from the next one unless the bytes are durable.
package retry
