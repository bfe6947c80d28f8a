# A server of an exported ONNX file on CPUs. JAX is not in the image.
#
#   docker build -t repvgg_jax_serve .
#   docker run --rm --read-only --tmpfs /tmp -p 8000:8000 -v $PWD/model.onnx:/model.onnx:ro repvgg_jax_serve
FROM python:3.12-slim
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir --constraint requirements.txt \
    absl-py cykooz-resizer numpy onnxruntime pillow simplejpeg \
    fastapi prometheus-client python-multipart uvicorn
COPY repvgg_jax repvgg_jax
USER 65534:65534
EXPOSE 8000
HEALTHCHECK --start-period=30s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
ENTRYPOINT ["python", "-m", "repvgg_jax.serve", "--host=0.0.0.0"]
CMD ["--model=/model.onnx"]
