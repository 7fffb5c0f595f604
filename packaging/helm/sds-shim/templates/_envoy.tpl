{{- /* What an Envoy starts with, as the text of an argument: it is the pod's own, because probes and mounts of the pod go
with it; @APP_PORT@ stands for a number. Listeners and clusters it has from files beside it, and follows them: kubelet
brings what changes in the ConfigMap. */}}
{{- define "sds-shim.envoy" -}}
{{- $bootstrap := include "sds-shim.envoy.bootstrap" . | fromYaml }}
{{- if hasKey $bootstrap "Error" }}{{ fail (printf "Envoy's configuration: %s" $bootstrap.Error) }}{{ end }}
{{- $bootstrap | toJson | replace "\"@APP_PORT@\"" "@APP_PORT@" }}
{{- end }}

{{- define "sds-shim.envoy.bootstrap" -}}
{{- with .Values.proxy }}
admin:
  address:
    pipe: { path: /var/run/sds-shim-envoy/admin.sock, mode: 384 }
dynamic_resources:
  lds_config:
    resource_api_version: V3
    path_config_source: { path: /etc/sds-shim/listeners.json, watched_directory: { path: /etc/sds-shim } }
  cds_config:
    resource_api_version: V3
    path_config_source: { path: /etc/sds-shim/clusters.json, watched_directory: { path: /etc/sds-shim } }
static_resources:
  listeners:
  - name: health
    address: { socket_address: {{ include "sds-shim.envoy.everywhere" (list .bindAddress .healthPort) }} }
    filter_chains:
    - filters:
      - {{- include "sds-shim.envoy.http" (dict "name" "health") | nindent 8 }}
          route_config:
            name: health
            virtual_hosts:
            - name: health
              domains: ["*"]
              routes:
              - { match: { path: /ready }, route: { cluster: admin } }
              - { match: { path: /stats/prometheus }, route: { cluster: admin } }
{{- range .probePaths }}
              - match: { path: {{ printf "/app-health%s" . | quote }}, headers: [{ name: ":method", string_match: { exact: GET } }] }
                route: { cluster: application, prefix_rewrite: {{ . | quote }} }
{{- end }}
  clusters:
  - name: sds-grpc
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http2_protocol_options: {} }
    load_assignment:
      cluster_name: sds-grpc
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { pipe: { path: {{ include "sds-shim.socket" $ }} } } }
  - name: admin
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: admin
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { pipe: { path: /var/run/sds-shim-envoy/admin.sock } } }
  - name: application
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      {{- include "sds-shim.envoy.protocols" $ | nindent 6 }}
    load_assignment:
      cluster_name: application
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: "@APP_PORT@" } } }
{{- end }}
{{- end }}

{{- /* A socket_address for all who come: (address, port). Envoy's "::" by itself is for IPv6 alone. */}}
{{- define "sds-shim.envoy.everywhere" -}}
{ address: {{ index . 0 | quote }}, port_value: {{ index . 1 }}{{ if contains ":" (index . 0) }}, ipv4_compat: true{{ end }} }
{{- end }}

{{- /* Where an Envoy listens, as part of a file's name: a pod keeps the file that it was made with, and its ports. */}}
{{- define "sds-shim.envoy.ports" -}}
{{- with .Values.proxy }}
{{- printf "%s-%d-%d" (ternary "ipv6" "ipv4" (contains ":" .bindAddress)) (int64 .inboundPort) (int64 .outboundPort) }}
{{- end }}
{{- end }}

{{- /* Those of the chart, and those that pods of before have in this namespace: (context, namespace), as a list. */}}
{{- define "sds-shim.envoy.allPorts" -}}
{{- $context := index . 0 }}
{{- $all := list (include "sds-shim.envoy.ports" $context) }}
{{- range $file, $_ := (lookup "v1" "ConfigMap" (index . 1) (include "sds-shim.name" $context)).data | default dict }}
{{- $ports := regexFind "ipv[46]-[0-9]+-[0-9]+" $file }}
{{- if eq $file (printf "listeners-%s.json" $ports) }}{{ $all = append $all $ports }}{{ end }}
{{- end }}
{{- $all | uniq | toYaml }}
{{- end }}

{{- /* Who comes in and goes out: (context, ports). */}}
{{- define "sds-shim.envoy.listeners" -}}
{{- $ports := splitList "-" (index . 1) }}
{{- $address := ternary "::" "0.0.0.0" (eq (index $ports 0) "ipv6") }}
{{- $everywhere := include "sds-shim.envoy.everywhere" (list $address (index $ports 1)) }}
{{- with index . 0 }}
resources:
- name: inbound
  "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  address: { socket_address: {{ $everywhere }} }
{{- if eq .Values.mutualTLS.mode "PERMISSIVE" }}
  listener_filters:
  - name: envoy.filters.listener.tls_inspector
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector
{{- end }}
  filter_chains:
  - name: mutual-tls
{{- if eq .Values.mutualTLS.mode "PERMISSIVE" }}
    filter_chain_match: { transport_protocol: tls }
{{- end }}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
        require_client_certificate: true
        common_tls_context:
          alpn_protocols: [h2, http/1.1]
          {{- include "sds-shim.envoy.tls" (list . .Values.proxy.allowedClients) | nindent 10 }}
    filters:
    {{- include "sds-shim.envoy.inbound" . | nindent 4 }}
{{- if eq .Values.mutualTLS.mode "PERMISSIVE" }}
  - name: plaintext
    filters:
    {{- include "sds-shim.envoy.inbound" . | nindent 4 }}
{{- end }}
- name: outbound
  "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  address: { socket_address: { address: 127.0.0.1, port_value: {{ index $ports 2 }} } }
  filter_chains:
  - filters:
    - {{- include "sds-shim.envoy.http" (dict "name" "outbound") | nindent 6 }}
        route_config:
          name: outbound
          # The two files are read one after the other, and a cluster may still be on its way.
          validate_clusters: false
          virtual_hosts: {{ include "sds-shim.envoy.hosts" . | fromYamlArray | toJson }}
{{- end }}
{{- end }}

{{- /* Whom one calls. */}}
{{- define "sds-shim.envoy.clusters" -}}
{{- $clusters := list }}
{{- range .Values.proxy.outbound }}
{{- $clusters = append $clusters (include "sds-shim.envoy.upstream" (list $ .) | fromYaml) }}
{{- end }}
{{- dict "resources" $clusters | toYaml }}
{{- end }}

{{- define "sds-shim.socket" -}}
/var/run/secrets/workload-spiffe-uds/{{ (include "sds-shim.variables" . | fromYaml).WORKLOAD_IDENTITY_SOCKET_FILE | default "socket" }}
{{- end }}

{{- /* One of the services: (context, entry). */}}
{{- define "sds-shim.envoy.upstream" -}}
{{- $context := index . 0 }}
{{- with index . 1 }}
name: {{ .service }}.{{ .namespace }}:{{ .port }}
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
type: STRICT_DNS
connect_timeout: 2s
transport_socket:
  name: envoy.transport_sockets.tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
    sni: {{ .service }}.{{ .namespace }}.svc.{{ $context.Values.clusterDomain }}
    common_tls_context:
      # By default an Envoy speaks TLS 1.2 as a client, in which a peer's key must lie on a curve that it offers.
      tls_params:
        tls_maximum_protocol_version: TLSv1_3
{{- with $context.Values.proxy.ecdhCurves }}
        ecdh_curves: {{ . | toJson }}
{{- end }}
      {{- include "sds-shim.envoy.tls" (list $context (list (printf "spiffe://%s/ns/%s/sa/%s" $context.Values.trustDomain .namespace .serviceAccount))) | nindent 6 }}
typed_extension_protocol_options:
  {{- include "sds-shim.envoy.protocols" $context | nindent 2 }}
    # A Service leads a connection to one pod for as long as it lives: only a new one finds the pods that there are now.
    # What is asked on the old one is answered first.
    {{- with $context.Values.proxy.maxConnectionSeconds | int64 }}
    common_http_protocol_options: { max_connection_duration: {{ . }}s }
    {{- end }}
# All that waits for a connection which is refused is asked again at once; by default three of it are, and the rest fails.
circuit_breakers: { thresholds: [{ max_retries: 1024 }] }
load_assignment:
  cluster_name: {{ .service }}.{{ .namespace }}:{{ .port }}
  endpoints:
  - lb_endpoints:
    - endpoint:
        address:
          socket_address:
            address: {{ .address | default (printf "%s.%s.svc.%s" .service .namespace $context.Values.clusterDomain) | quote }}
            port_value: {{ .port }}
{{- end }}
{{- end }}

{{- /* A common_tls_context with the workload's certificate, and peers with one of these names: (context, names). Those in
our trust domain are taken in its aliases as well. */}}
{{- define "sds-shim.envoy.tls" -}}
{{- $context := index . 0 }}
{{- $source := include "sds-shim.envoy.sds" $context | fromYaml | toJson }}
tls_certificate_sds_secret_configs:
- { name: default, sds_config: {{ $source }} }
combined_validation_context:
  default_validation_context:
    match_typed_subject_alt_names:
{{- $own := printf "spiffe://%s/" $context.Values.trustDomain }}
{{- $names := list }}
{{- range $name := index . 1 | default (list (printf "%s*" $own)) }}
{{- $names = append $names $name }}
{{- if hasPrefix $own $name }}
{{- range $context.Values.trustDomainAliases }}{{ $names = append $names (printf "spiffe://%s/%s" . (trimPrefix $own $name)) }}{{ end }}
{{- end }}
{{- end }}
{{- range $names }}
{{- if hasSuffix "/*" . }}
    - { san_type: URI, matcher: { prefix: {{ trimSuffix "*" . | quote }} } }
{{- else }}
    - { san_type: URI, matcher: { exact: {{ . | quote }} } }
{{- end }}
{{- end }}
  validation_context_sds_secret_config: { name: ROOTCA, sds_config: {{ $source }} }
{{- end }}

{{- define "sds-shim.envoy.sds" -}}
resource_api_version: V3
# Wait for the first certificate, for ever.
initial_fetch_timeout: 0s
api_config_source:
  api_type: GRPC
  transport_api_version: V3
  set_node_on_first_message_only: true
  grpc_services:
  - envoy_grpc: { cluster_name: sds-grpc }
{{- end }}

{{- define "sds-shim.envoy.inbound" -}}
- {{- include "sds-shim.envoy.http" (dict "name" "inbound") | nindent 2 }}
    # The application is told who calls, and by nobody else than us.
    forward_client_cert_details: SANITIZE_SET
    set_current_client_cert_details: { uri: true }
    route_config:
      name: inbound
      virtual_hosts:
      - name: application
        domains: ["*"]
        routes:
        - { match: { prefix: / }, route: { cluster: application, timeout: 0s } }
{{- end }}

{{- /* An HTTP filter up to its routes: (dict "name" name). */}}
{{- define "sds-shim.envoy.http" -}}
name: envoy.filters.network.http_connection_manager
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
  stat_prefix: {{ .name }}
  upgrade_configs: [{ upgrade_type: websocket }]
  http_filters:
  - name: envoy.filters.http.router
    typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
{{- end }}

{{- /* The names under which the services are called; the first port of a service is also called without it. */}}
{{- define "sds-shim.envoy.hosts" -}}
{{- $seen := dict }}
{{- range .Values.proxy.outbound }}
{{- $name := printf "%s.%s" .service .namespace }}
{{- $domains := list }}
{{- $port := .port }}
{{- range list $name (printf "%s.svc" $name) (printf "%s.svc.%s" $name $.Values.clusterDomain) }}
{{- $domains = append $domains (printf "%s:%d" . (int64 $port)) }}
{{- if not (hasKey $seen $name) }}{{ $domains = append $domains . }}{{ end }}
{{- end }}
{{- $_ := set $seen $name true }}
- name: {{ $name }}:{{ .port }}
  domains: {{ $domains | toJson }}
  routes:
  - match: { prefix: / }
    route:
      cluster: "{{ $name }}:{{ .port }}"
      timeout: 0s
      # What has not been sent may be asked again: kube-proxy leads to a pod for a moment after that has ended.
      retry_policy:
        retry_on: connect-failure,refused-stream,reset-before-request
        num_retries: 3
        retry_back_off: { base_interval: 0.05s, max_interval: 0.5s }
{{- end }}
{{- end }}

{{- /* HTTP/1.1 stays HTTP/1.1, and HTTP/2 (gRPC) stays HTTP/2. */}}
{{- define "sds-shim.envoy.protocols" -}}
envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
  "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
  use_downstream_protocol_config: { http_protocol_options: {}, http2_protocol_options: {} }
{{- end }}
