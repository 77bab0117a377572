#!/bin/sh
# Regenerates the Go code beside each .proto file below this directory. Needs
# protoc 3.21 or later (Debian: apt-get install protobuf-compiler); the plugins
# are tools of go.mod. What protoc's own version writes into the files is taken
# out, so that every version leaves the same bytes.
set -eu
cd "$(dirname "$0")"
command -v protoc >/dev/null || {
	echo "generate.sh: protoc is missing: apt-get install protobuf-compiler" >&2
	exit 1
}
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
go build -o "$tools/" \
	google.golang.org/protobuf/cmd/protoc-gen-go \
	google.golang.org/grpc/cmd/protoc-gen-go-grpc
export LC_ALL=C
for proto in $(find . -name '*.proto' | sort); do
	protoc --proto_path=. \
		--plugin="$tools/protoc-gen-go" --go_out=. --go_opt=paths=source_relative \
		--plugin="$tools/protoc-gen-go-grpc" --go-grpc_out=. --go-grpc_opt=paths=source_relative \
		"${proto#./}"
done
find . -name '*.pb.go' -exec sed -i -E '/^\/\/ (- |\t)protoc +v[0-9]/d' {} +
