;; Wants something that no WASI has.
(module (import "env" "system" (func (param i32))) (memory (export "memory") 1) (func (export "_start")))
