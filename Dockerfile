# One image for worker, beat, Flower and the command line.
FROM python:3.13-slim
RUN useradd --create-home aegis
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir ".[binary,flower]" && rm -rf /src/*
WORKDIR /app
ENV PYTHONPATH=/app
USER aegis
CMD ["aegis", "worker"]
