"""The product's routing policy and admission orders in simulated time, over a trace. No torch, no Ray."""
