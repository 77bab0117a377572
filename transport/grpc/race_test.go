//go:build race

package grpc

// raceDetector says that these tests run with it, five times slower.
const raceDetector = true
