"""How good the pictures are: PSNR-Y, SSIM-Y, MATLAB-style bicubic, benchmarks over folders."""
