"""Fine-tuning for the tasks that count: denoising, deraining and dehazing in one model; gUNet's own recipe beside it."""
