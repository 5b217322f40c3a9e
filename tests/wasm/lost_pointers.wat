;; Hands WASI addresses outside its memory. Exit status: how many of the four calls did not say EFAULT (21).
(module
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (call $exit (i32.add
      (i32.add (i32.ne (call $random (i32.const 0) (i32.const -1)) (i32.const 21))
               (i32.ne (call $random (i32.const -4) (i32.const 8)) (i32.const 21)))
      (i32.add (i32.ne (call $clock (i32.const 0) (i64.const 0) (i32.const 65530)) (i32.const 21))
               (i32.ne (call $poll (i32.const 65500) (i32.const 0) (i32.const 1) (i32.const 8))
                       (i32.const 21)))))))
