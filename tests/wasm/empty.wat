;; Does nothing, well.
(module (memory (export "memory") 1) (func (export "_start")))
