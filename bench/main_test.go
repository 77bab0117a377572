package main

import (
	"testing"

	"github.com/telemap/telemap/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
