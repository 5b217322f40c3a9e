;; Opens files without closing them until it is denied; exit status 0 when that came before 200.
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "one")
  (func (export "_start") (local $n i32)
    (loop $more
      (if (call $open (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 3)
          (i32.const 1) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 124))
        (then (call $exit (i32.const 0))))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $n) (i32.const 200))))
    (call $exit (i32.const 1))))
