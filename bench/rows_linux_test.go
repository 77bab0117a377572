package main

import (
	"strings"
	"testing"
)

func TestRowsNameSidesThatExist(t *testing.T) {
	ids := map[string]bool{}
	for _, g := range groups(&site{}) {
		sides := map[string]bool{"": true}
		for _, s := range g.sides {
			if sides[s.name] {
				t.Errorf("%s has two sides called %q", g.name, s.name)
			}
			sides[s.name] = true
		}
		used := map[string]bool{}
		for _, r := range g.rows {
			if !strings.HasPrefix(r.ID, g.name+"/") || ids[r.ID] {
				t.Errorf("row %q of %s: its id is not the group's own", r.ID, g.name)
			}
			ids[r.ID] = true
			for _, s := range []string{r.Side, r.Beside} {
				if !sides[s] {
					t.Errorf("row %q: there is no side %q", r.ID, s)
				}
				used[s] = true
			}
			if r.Side == "" || r.Metric == "" || r.Unit == "" || r.What == "" {
				t.Errorf("row %q lacks something: %+v", r.ID, r)
			}
		}
		for _, s := range g.sides {
			if !used[s.name] {
				t.Errorf("%s: no row shows the side %q", g.name, s.name)
			}
		}
	}
}
