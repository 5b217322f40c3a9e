;; Leaves a symbolic link in /output. Exit status: the errno.
(module
  (import "wasi_snapshot_preview1" "path_symlink" (func $link (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "target")
  (data (i32.const 16) "link")
  (func (export "_start")
    (call $exit (call $link (i32.const 0) (i32.const 6) (i32.const 4) (i32.const 16) (i32.const 4)))))
