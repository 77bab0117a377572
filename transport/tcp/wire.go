package tcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
)

const (
	magic   = "tlmp"
	version = 1

	helloLen  = 64
	headerLen = 40

	// maxPayload is the longest payload either side offers to take.
	maxPayload = 4 << 20
	// minPayload is the least that a peer must be able to take.
	minPayload = 64 << 10
	// maxText bounds the text of an error.
	maxText = 1 << 10
	// maxVecs bounds the ranges of one vectored read.
	maxVecs = 4096
	vecLen  = 16

	// clientBytes is the most payload of requests and replies that a client asks
	// for at a time on one connection.
	clientBytes = maxInFlight * (mostPerFrame + maxVecs*vecLen)
)

// Errors of a peer that does not speak as agreed.
var (
	// ErrProtocol is returned when the peer is not telemap or breaks the protocol.
	ErrProtocol = errors.New("protocol error")
	// ErrVersion is returned when the peer speaks another version only.
	ErrVersion = errors.New("protocol version not supported")
)

// A hello is what a client says first.
//
//	0 magic "tlmp" · 4 version u16 · 6 reserved u16 · 8 features u32 ·
//	12 most payload u32 · 16 session [16] · 32 slot u32 · 36 generation u64 ·
//	44 reserved
type hello struct {
	version    uint16
	features   uint32
	payload    uint32
	session    [16]byte
	slot       uint32
	generation uint64
}

func (h hello) encode() []byte {
	b := make([]byte, helloLen)
	copy(b, magic)
	binary.LittleEndian.PutUint16(b[4:], h.version)
	binary.LittleEndian.PutUint32(b[8:], h.features)
	binary.LittleEndian.PutUint32(b[12:], h.payload)
	copy(b[16:], h.session[:])
	binary.LittleEndian.PutUint32(b[32:], h.slot)
	binary.LittleEndian.PutUint64(b[36:], h.generation)
	return b
}

func decodeHello(b []byte) (hello, error) {
	if len(b) != helloLen || string(b[:4]) != magic {
		return hello{}, fmt.Errorf("%w: %s", ErrProtocol, foreign(b))
	}
	h := hello{
		version:    binary.LittleEndian.Uint16(b[4:]),
		features:   binary.LittleEndian.Uint32(b[8:]),
		payload:    binary.LittleEndian.Uint32(b[12:]),
		slot:       binary.LittleEndian.Uint32(b[32:]),
		generation: binary.LittleEndian.Uint64(b[36:]),
	}
	copy(h.session[:], b[16:])
	if h.version != version {
		return h, fmt.Errorf("%w: the peer speaks %d, this program %d", ErrVersion, h.version, version)
	}
	if h.payload < minPayload {
		return h, fmt.Errorf("%w: the peer takes payloads of %d bytes, at least %d are needed", ErrProtocol, h.payload, minPayload)
	}
	return h, nil
}

// foreign says what a peer speaks that does not start as telemap's do.
func foreign(b []byte) string {
	switch {
	case len(b) >= 3 && b[0] == 22 && b[1] == 3:
		return "the peer speaks TLS, which is not turned on here"
	case len(b) >= 7 && b[0] == 21 && b[1] == 3:
		return "the peer expects TLS, which is not turned on here"
	}
	for _, method := range []string{"GET ", "HEAD ", "POST ", "PUT ", "OPTIONS ", "CONNECT ", "PRI ", "HTTP/"} {
		if strings.HasPrefix(string(b), method) {
			return "the peer speaks HTTP"
		}
	}
	return "the peer does not speak telemap's protocol"
}

// A welcome is what a server answers.
//
//	0 magic · 4 version u16 · 6 status u16 · 8 features u32 · 12 most payload u32 ·
//	16 length of the text behind it u16 · 18 most requests in flight u16 ·
//	20 instance [16] · 36 reserved
type welcome struct {
	version  uint16
	status   code
	features uint32
	payload  uint32
	inflight uint16
	instance [16]byte // differs each time the server starts
	text     string
}

func (w welcome) encode() []byte {
	text := clipText(w.text)
	b := make([]byte, helloLen, helloLen+len(text))
	copy(b, magic)
	binary.LittleEndian.PutUint16(b[4:], w.version)
	binary.LittleEndian.PutUint16(b[6:], uint16(w.status))
	binary.LittleEndian.PutUint32(b[8:], w.features)
	binary.LittleEndian.PutUint32(b[12:], w.payload)
	binary.LittleEndian.PutUint16(b[16:], uint16(len(text)))
	binary.LittleEndian.PutUint16(b[18:], w.inflight)
	copy(b[20:], w.instance[:])
	return append(b, text...)
}

func readWelcome(r io.Reader) (welcome, error) {
	var b [helloLen]byte
	if n, err := io.ReadFull(r, b[:]); err != nil {
		if n >= 4 && string(b[:4]) != magic {
			err = fmt.Errorf("%w: %s", ErrProtocol, foreign(b[:n]))
		}
		return welcome{}, err
	}
	if string(b[:4]) != magic {
		return welcome{}, fmt.Errorf("%w: %s", ErrProtocol, foreign(b[:]))
	}
	w := welcome{
		version:  binary.LittleEndian.Uint16(b[4:]),
		status:   code(binary.LittleEndian.Uint16(b[6:])),
		features: binary.LittleEndian.Uint32(b[8:]),
		payload:  binary.LittleEndian.Uint32(b[12:]),
		inflight: binary.LittleEndian.Uint16(b[18:]),
		instance: [16]byte(b[20:36]),
	}
	text := make([]byte, min(binary.LittleEndian.Uint16(b[16:]), maxText))
	if _, err := io.ReadFull(r, text); err != nil {
		return w, err
	}
	w.text = cleanText(text)
	switch {
	case w.version != version:
		return w, fmt.Errorf("%w: the server speaks %d, this program %d", ErrVersion, w.version, version)
	case w.status != ok:
		return w, decodeError(w.status, w.text)
	case w.payload < minPayload:
		return w, fmt.Errorf("%w: the server takes payloads of %d bytes, at least %d are needed", ErrProtocol, w.payload, minPayload)
	}
	return w, nil
}

// An op says what a request asks for.
type op uint8

const (
	opPing     op = iota + 1
	opCancel      // off is the id of the request to cancel; has no reply
	opOpen        // payload: name; reply: see info
	opList        // reply: infos
	opRead        // reply: n bytes
	opReadVec     // payload: off i64, n i64 per range, n: bytes in all; reply: all bytes
	opWrite       // payload: the bytes
	opSync        //
	opZero        //
	opDiscard     //
	opNextData    // reply: off and n are the range; code eof if there is none
	opClose       // forget the handle; has no reply
)

// A header starts every frame.
//
//	0 payload length u32 · 4 op u8 · 5 reserved u8 · 6 code u16 · 8 id u64 ·
//	16 off i64 · 24 n i64 · 32 handle u32 · 36 reserved u32
//
// In a reply whose code is not ok, n says how many bytes were read or written
// before the failure. Those read come first in the payload, then text.
type header struct {
	length uint32 // of the payload
	op     op
	code   code // of a reply
	id     uint64
	off, n int64
	handle uint32 // which region a request is about
}

func (h *header) put(b *[headerLen]byte) {
	binary.LittleEndian.PutUint32(b[0:], h.length)
	b[4], b[5] = byte(h.op), 0
	binary.LittleEndian.PutUint16(b[6:], uint16(h.code))
	binary.LittleEndian.PutUint64(b[8:], h.id)
	binary.LittleEndian.PutUint64(b[16:], uint64(h.off))
	binary.LittleEndian.PutUint64(b[24:], uint64(h.n))
	binary.LittleEndian.PutUint32(b[32:], h.handle)
	binary.LittleEndian.PutUint32(b[36:], 0)
}

func (h *header) get(b *[headerLen]byte) {
	*h = header{
		length: binary.LittleEndian.Uint32(b[0:]),
		op:     op(b[4]),
		code:   code(binary.LittleEndian.Uint16(b[6:])),
		id:     binary.LittleEndian.Uint64(b[8:]),
		off:    int64(binary.LittleEndian.Uint64(b[16:])),
		n:      int64(binary.LittleEndian.Uint64(b[24:])),
		handle: binary.LittleEndian.Uint32(b[32:]),
	}
}

// A region's description: size i64 · chunk size i64 · flags u8 · name length u8 ·
// name.
const (
	infoLen      = 18
	flagReadOnly = 1 << 0
)

func appendInfo(b []byte, in transport.Info) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(in.Size))
	b = binary.LittleEndian.AppendUint64(b, uint64(in.ChunkSize))
	var flags byte
	if in.ReadOnly {
		flags |= flagReadOnly
	}
	name := in.Name[:min(len(in.Name), transport.MaxName)]
	return append(append(b, flags, byte(len(name))), name...)
}

// cutInfo decodes the description at the head of b and returns the rest.
func cutInfo(b []byte) (in transport.Info, rest []byte, err error) {
	bad := fmt.Errorf("%w: malformed description of a region", ErrProtocol)
	if len(b) < infoLen || len(b) < infoLen+int(b[17]) {
		return in, nil, bad
	}
	in = transport.Info{
		Size:      int64(binary.LittleEndian.Uint64(b)),
		ChunkSize: int64(binary.LittleEndian.Uint64(b[8:])),
		ReadOnly:  b[16]&flagReadOnly != 0,
		Name:      string(b[infoLen : infoLen+int(b[17])]),
	}
	if in.Size <= 0 || in.ChunkSize < 0 || in.ChunkSize&(in.ChunkSize-1) != 0 {
		return in, nil, bad
	}
	return in, b[infoLen+int(b[17]):], nil
}

// A code says in a reply how the request went.
type code uint16

const (
	ok     code = iota
	failed      // the text says what
	eof         // no data follows
	closed
	outOfRange
	readOnly
	notFound
	fenced
	noSpace
	unavailable
	badRequest
	unsupported
	badVersion
	lost
)

// sentinels are the errors that keep their identity across the network.
var sentinels = []struct {
	code code
	err  error
}{
	{eof, io.EOF},
	{closed, region.ErrClosed},
	{outOfRange, region.ErrOutOfRange},
	{readOnly, region.ErrReadOnly},
	{notFound, region.ErrNotFound},
	{fenced, region.ErrFenced},
	{noSpace, region.ErrNoSpace},
	{unavailable, region.ErrUnavailable},
	{lost, region.ErrLost},
	{badRequest, region.ErrBadRequest},
	{unsupported, errors.ErrUnsupported},
	{badVersion, ErrVersion},
}

// encodeError is how err travels.
func encodeError(err error) (code, string) {
	if err == nil {
		return ok, ""
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			if err == s.err {
				return s.code, ""
			}
			return s.code, clipText(err.Error())
		}
	}
	return failed, clipText(err.Error())
}

// A remoteError is an error that the peer reported, in its words.
type remoteError struct {
	text string
	is   error // nil if it is none of the sentinels
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.is }

func decodeError(c code, text string) error {
	if c == ok {
		return nil
	}
	for _, s := range sentinels {
		if s.code != c {
			continue
		}
		if text == "" {
			return s.err
		}
		return &remoteError{text, s.err}
	}
	if text == "" {
		text = fmt.Sprintf("the peer failed with code %d", c)
	}
	return &remoteError{text, nil}
}

func clipText(s string) string { return s[:min(len(s), maxText)] }

// cleanText makes a peer's words fit for a log.
func cleanText(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, string(b))
}
