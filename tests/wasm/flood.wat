;; Prints "begin", then 100,000 escape characters, then "end".
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "begin")
  (data (i32.const 8) "end")
  (func $print (param $at i32) (param $size i32)
    (i32.store (i32.const 100) (local.get $at))
    (i32.store (i32.const 104) (local.get $size))
    (drop (call $write (i32.const 2) (i32.const 100) (i32.const 1) (i32.const 120))))
  (func (export "_start") (local $i i32)
    (memory.fill (i32.const 1024) (i32.const 27) (i32.const 4000))
    (call $print (i32.const 0) (i32.const 5))
    (loop $more
      (call $print (i32.const 1024) (i32.const 4000))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $i) (i32.const 25))))
    (call $print (i32.const 8) (i32.const 3))))
