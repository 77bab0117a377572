package demo

import (
	"context"
	"errors"

	"github.com/telemap/telemap"
	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/pager"
)

// A libraryUser uses a region through the library's pager in this process.
type libraryUser struct {
	b backend.Backend
	p *pager.Pager
}

func useLibrary(ctx context.Context, url string, pull bool) (user, error) {
	b, err := telemap.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	p, err := pager.Open(ctx, b, pager.Options{Pull: pager.PullOptions{Off: !pull}})
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return &libraryUser{b: b, p: p}, nil
}

func (u *libraryUser) ReadAt(p []byte, off int64) (int, error) {
	return u.p.ReadAt(context.Background(), p, off)
}

func (u *libraryUser) WriteAt(p []byte, off int64) (int, error) {
	return u.p.WriteAt(context.Background(), p, off)
}

func (u *libraryUser) Map(p []byte, off int64) (bool, error) {
	_, err := u.WriteAt(p, off)
	return false, err
}

func (u *libraryUser) Sync() error { return u.p.Sync(context.Background()) }

func (u *libraryUser) Close() (counts, error) {
	err := u.p.Close(context.Background())
	s := u.p.Stats()
	return counts{Fetched: s.FetchedBytes, Pushed: s.PushedBytes, Hits: s.Hits, Misses: s.Misses}, errors.Join(err, u.b.Close())
}
