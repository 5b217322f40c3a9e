;; Creates empty files in /output for ever, named by a counter of eight letters.
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
  (memory (export "memory") 1)
  (func $name (param $n i32) (local $i i32)
    (loop $letter
      (i32.store8 (local.get $i) (i32.add (i32.const 97) (i32.and (local.get $n) (i32.const 15))))
      (local.set $n (i32.shr_u (local.get $n) (i32.const 4)))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $letter (i32.lt_u (local.get $i) (i32.const 8)))))
  (func (export "_start") (local $n i32)
    (loop $more
      (call $name (local.get $n))
      (if (i32.eqz (call $open (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 8)
          (i32.const 9) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 124)))
        (then (drop (call $close (i32.load (i32.const 124))))))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br $more))))
