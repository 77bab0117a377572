package region

// A Vec is one piece of a vectored read: P is filled from byte offset Off.
type Vec struct {
	P   []byte
	Off int64
}
