"""The commands behind `homeport`, one module each, loaded only when run; `homeport.mesh.cli` lists them."""
