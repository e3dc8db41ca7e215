# hybrid-infer's HTTP server. Built in one stage, installed as a user would in the next, run by a user who owns nothing.
#
#   docker build -t hybrid-infer .
#   docker run --read-only --tmpfs /tmp -v hybrid-infer:/cache -p 127.0.0.1:8080:8080 hybrid-infer
FROM node:22-bookworm-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN npm ci && npm run pack
# No onnxruntime-node (288 MB): serving needs it for a GPU only. The kernels are asked for by name, since they are
# an optional package too.
RUN mkdir /app && cd /app && npm install --omit=optional --ignore-scripts /src/packages/*.tgz

FROM node:22-bookworm-slim
COPY --from=build /app /app
# Models are converted into packs there; everything else may be read-only.
RUN mkdir /cache && chown node:node /cache
ENV HYBRID_INFER_CACHE=/cache NODE_ENV=production PATH=/app/node_modules/.bin:$PATH
USER node
WORKDIR /cache
VOLUME /cache
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
  CMD node -e "fetch('http://127.0.0.1:8080/health').then((r) => process.exit(r.ok ? 0 : 1), () => process.exit(1))"
# Docker's SIGTERM drains: running requests end first. Give them time with `docker stop -t 600`.
ENTRYPOINT ["hybrid-infer"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8080"]
