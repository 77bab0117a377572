package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/telemap/telemap/internal/testkit"
)

// What fio writes by each way, at random and many requests at once, it reads
// back with the right checksums, and the server has it in the end.
func TestFio(t *testing.T) {
	testkit.NeedFUSE(t)
	fio := testkit.NeedProgram(t, "fio", "fio")
	t.Parallel()
	const size = 32 << 20
	for _, mode := range []struct {
		name  string
		flags []string
	}{
		{"managed", []string{"--push-interval", "50ms"}},
		{"direct", []string{"--direct"}},
	} {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			for i, job := range []string{
				"--ioengine=psync --direct=0 --bsrange=4k-128k",
				"--ioengine=psync --direct=1 --bsrange=4k-256k",
				"--ioengine=mmap --bs=4k",
				"--ioengine=libaio --direct=1 --iodepth=16 --bs=16k",
				"--ioengine=io_uring --direct=0 --iodepth=8 --bs=8k",
				"--ioengine=psync --direct=0 --bs=4k --fsync=32 --numjobs=4 --offset_increment=25% --size=25%",
			} {
				how := strings.Fields(job)
				t.Run(strings.TrimPrefix(how[0], "--ioengine=")+fmt.Sprint(i), func(t *testing.T) {
					if i > 1 {
						slow(t)
					}
					s := serve(t, emptyFile(t, size+100))
					m := mount(t, s.url, mountPath(t), mode.flags...)
					// The file has its size and keeps it: nothing may make, truncate or
					// preallocate it.
					args := append([]string{
						"--name=verify", "--filename=" + m.path, fmt.Sprintf("--size=%d", size), "--rw=randrw",
						"--allow_file_create=0", "--fallocate=none", "--overwrite=1", "--file_append=0",
						"--verify=crc32c", "--verify_state_save=0", "--verify_fatal=1", "--verify_backlog=256", "--randrepeat=0",
						"--output-format=terse", "--minimal",
					}, how...)
					out, err := try(t, fio, args...)
					if err != nil && strings.Contains(out, "engine") && strings.Contains(out, "not loadable") {
						testkit.Need(t, "fio "+how[0], err)
					}
					if err != nil {
						t.Fatalf("fio %s: %v\n%s", strings.Join(args, " "), err, out)
					}
					held := digest(t, m.path)
					m.unmount()
					if got := digest(t, s.backend); got != held {
						t.Errorf("the served file is not what was mounted: %s, want %s", got, held)
					}
				})
			}
		})
	}
}
