package grpc

import (
	"context"
	"errors"
	"io"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/telemap/telemap/region"
	telemapv1 "github.com/telemap/telemap/transport/grpc/proto/telemap/v1"
)

// domain marks the ErrorInfo details that are ours.
const domain = "telemap"

// Refusals that only the two ends of a session act on. What was refused was not
// carried out.
var (
	errStale   = errors.New("a later generation of this session was seen already")
	errUnknown = errors.New("the server does not know this session")
)

// reasons says how errors travel. A client gets back the sentinel, by reason
// and not by code: codes are for those who look from outside.
var reasons = []struct {
	err    error
	code   codes.Code
	reason string
}{
	{errStale, codes.Aborted, "STALE_GENERATION"},
	{errUnknown, codes.FailedPrecondition, "UNKNOWN_SESSION"},
	{region.ErrFenced, codes.FailedPrecondition, "FENCED"},
	{region.ErrClosed, codes.FailedPrecondition, "CLOSED"},
	{region.ErrOutOfRange, codes.OutOfRange, "OUT_OF_RANGE"},
	{region.ErrReadOnly, codes.PermissionDenied, "READ_ONLY"},
	{region.ErrNotFound, codes.NotFound, "NOT_FOUND"},
	{region.ErrNoSpace, codes.ResourceExhausted, "NO_SPACE"},
	{region.ErrBadRequest, codes.InvalidArgument, "BAD_REQUEST"},
	{region.ErrLost, codes.DataLoss, "LOST"},
	{region.ErrUnavailable, codes.Unavailable, "UNAVAILABLE"},
	{errors.ErrUnsupported, codes.Unimplemented, "UNSUPPORTED"},
	{context.Canceled, codes.Canceled, "CANCELED"},
	{context.DeadlineExceeded, codes.DeadlineExceeded, "DEADLINE_EXCEEDED"},
	{io.EOF, codes.OutOfRange, "EOF"},
}

// other is the reason of an error that has no sentinel.
const other = "OTHER"

// maxErrorText bounds the text of an error that travels in a header.
const maxErrorText = 1 << 10

// toStatus turns what a handler returns into a status. An error that only says
// that the asker gave up gets no reason: nobody reads it, and should the asker's
// connection have ended instead, it must count as one that ended.
func toStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return status.FromContextError(ctx.Err()).Err()
	}
	code, reason, text := describe(err)
	st := status.New(code, text)
	if with, err := st.WithDetails(&errdetails.ErrorInfo{Domain: domain, Reason: reason}); err == nil {
		st = with
	}
	return st.Err()
}

func describe(err error) (code codes.Code, reason, text string) {
	code, reason = codes.Unknown, other
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			code, reason = r.code, r.reason
			break
		}
	}
	text = err.Error()
	if len(text) > maxErrorText {
		text = text[:maxErrorText] + "…"
	}
	return code, reason, strings.ToValidUTF8(text, "\uFFFD")
}

// failureTo is err beside the part of an operation that was done.
func failureTo(err error) *telemapv1.Failure {
	_, reason, text := describe(err)
	return &telemapv1.Failure{Reason: reason, Text: text}
}

func failureFrom(f *telemapv1.Failure) error { return errorFrom(f.GetReason(), f.GetText()) }

// errorFrom is the error that the other side described.
func errorFrom(reason, text string) error {
	e := &peerError{text: text}
	for _, r := range reasons {
		if r.reason == reason {
			e.err = r.err
		}
	}
	return e
}

// A peerError is an error that the other side answered with.
type peerError struct {
	text string // the other side's
	err  error  // the sentinel, or nil
}

func (e *peerError) Error() string { return "server: " + e.text }
func (e *peerError) Unwrap() error { return e.err }

// errUnreachable marks a call that may not have reached the server, or whose
// answer may have been lost.
var errUnreachable = errors.New("server cannot be reached")

// fromStatus is the inverse of toStatus. Answered says that the error is one
// that the server's handler gave, so that the request is over; otherwise the
// request may still be carried out.
func fromStatus(err error) (mapped error, answered bool) {
	st, ok := status.FromError(err)
	if !ok {
		return err, false
	}
	for _, d := range st.Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if !ok || info.Domain != domain {
			continue
		}
		return errorFrom(info.Reason, st.Message()), true
	}
	// From here on gRPC speaks, or a server that is not ours.
	e := &peerError{text: st.Message()}
	switch st.Code() {
	case codes.Unavailable, codes.Canceled:
		e.err = errUnreachable
	case codes.DeadlineExceeded:
		e.err = context.DeadlineExceeded
	case codes.Unimplemented:
		e.err = errors.ErrUnsupported
	case codes.OutOfRange:
		e.err = region.ErrOutOfRange
	case codes.InvalidArgument, codes.ResourceExhausted:
		e.err = region.ErrBadRequest
	}
	return e, false
}
