"""Storage formats of quantized weights, read without the libraries that write them."""
