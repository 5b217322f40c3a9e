;; Reports progress 0.5, then never ends, calling nothing that could be interrupted from outside.
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "progress")
  (data (i32.const 16) "0.5")
  (func (export "_start")
    (drop (call $open (i32.const 6) (i32.const 0) (i32.const 0) (i32.const 8)
      (i32.const 9) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 124)))
    (i32.store (i32.const 100) (i32.const 16))
    (i32.store (i32.const 104) (i32.const 3))
    (drop (call $write (i32.load (i32.const 124)) (i32.const 100) (i32.const 1) (i32.const 120)))
    (loop $forever (br $forever))))
