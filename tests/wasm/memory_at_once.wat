;; Asks for 2 GiB before it starts.
(module (memory (export "memory") 32768) (func (export "_start")))
