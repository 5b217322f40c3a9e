"""The composition root: it joins the pure core to the adapters, and is the only part that knows all of them."""
