"""Measures picture quality: PSNR-Y, SSIM-Y, MATLAB-style bicubic, benchmarks over folders."""
