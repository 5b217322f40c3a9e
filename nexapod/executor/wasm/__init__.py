"""WebAssembly modules, in runner processes of their own."""
