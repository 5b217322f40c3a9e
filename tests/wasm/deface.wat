;; Tries to change /input: create, overwrite, unlink, rename, and link in.txt to where it may write. Exit status:
;; 0 when all was denied, else a bit for each that was not.
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_unlink_file" (func $unlink (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_rename" (func $rename (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_link" (func $link (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "in.txt")
  (data (i32.const 16) "new")
  (data (i32.const 32) "../../../../../../../../../../etc/passwd")
  (func $allowed (param $errno i32) (param $bit i32) (result i32)
    (select (i32.const 0) (local.get $bit) (local.get $errno)))
  (func (export "_start")
    (call $exit
      (i32.or (call $allowed (call $open (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 3)
          (i32.const 9) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 124)) (i32.const 1))
      (i32.or (call $allowed (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 6)
          (i32.const 8) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 124)) (i32.const 2))
      (i32.or (call $allowed (call $link (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 6)
          (i32.const 4) (i32.const 16) (i32.const 3)) (i32.const 4))
      (i32.or (call $allowed (call $rename (i32.const 3) (i32.const 0) (i32.const 6)
          (i32.const 4) (i32.const 16) (i32.const 3)) (i32.const 8))
      (i32.or (call $allowed (call $open (i32.const 3) (i32.const 1) (i32.const 32) (i32.const 40)
          (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 124)) (i32.const 16))
        (call $allowed (call $unlink (i32.const 3) (i32.const 0) (i32.const 6)) (i32.const 32))))))))))
