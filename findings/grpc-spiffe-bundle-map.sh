#!/usr/bin/env bash
# A SPIFFE bundle map, from which gRPC services under xDS take their roots (spiffe_trust_bundle_map_file): the trust domain's
# bundle in it is the document of its bundle endpoint, with an X.509 root and the key that signs JWT-SVIDs, as SPIRE serves it.
#
# Guess:    grpc-go and grpc-java both read it. Each looks for the keys with use "x509-svid" and leaves the rest alone, and
#           gRFC A87 says that of a key only kty, use and x5c matter.
# Happens:  grpc-java 1.85 refuses the whole map, all other trust domains included: "'kid' parameter must not be set", which
#           every JWT key needs. Without JWT keys both read it. The map with kty, use and x5c alone is the other way round:
#           grpc-java reads it, and grpc-go 1.85 waits for a map until the caller gives up, as it wants x and y too.
# Matters:  with the map of one's own Go services a Java service has no roots: no connection comes up, or if it is a renewal
#           the old roots stay. One federated domain with a JWT key is enough. Take the keys with use "jwt-svid" out of the map and
#           leave x and y in.
# Source:   google.golang.org/grpc v1.85.0 (the pemfile provider), io.grpc:grpc-core 1.85.1 (SpiffeUtil, which the file watcher
#           under xDS reads the map with), cryptography 50.0.2; gRFC A87.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cryptography==50.0.2
venv/bin/python - <<'PYTHON'
import base64, datetime, json
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

now = datetime.datetime.now(datetime.timezone.utc)

def key(private):
    n = private.public_key().public_numbers()
    text = lambda number: base64.urlsafe_b64encode(number.to_bytes(32, "big")).rstrip(b"=").decode()
    return {"kty": "EC", "crv": "P-256", "x": text(n.x), "y": text(n.y)}

def root(domain):
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, domain)])
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(True, None), True)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{domain}")]), False).sign(private, hashes.SHA256()))
    return {**key(private), "use": "x509-svid", "x5c": [base64.b64encode(made.public_bytes(serialization.Encoding.DER)).decode()]}

jwt = {**key(ec.generate_private_key(ec.SECP256R1())), "use": "jwt-svid", "kid": "a"}
ours, partners = root("td"), root("partner")
least = {name: ours[name] for name in ("kty", "use", "x5c")}
for file, ours_keys, partners_keys in (("x509.json", [ours], [partners]), ("jwt.json", [ours, jwt], [partners]),
                                       ("partners-jwt.json", [ours], [partners, jwt]), ("least.json", [least], [partners])):
    bundle = lambda keys: {"spiffe_sequence": 1, "spiffe_refresh_hint": 300, "keys": keys}
    with open(file, "w") as f: json.dump({"trust_domains": {"td": bundle(ours_keys), "partner": bundle(partners_keys)}}, f)
PYTHON

cat >pom.xml <<'XML'
<project>
  <modelVersion>4.0.0</modelVersion><groupId>org.example</groupId><artifactId>finding</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>io.grpc</groupId><artifactId>grpc-core</artifactId><version>1.85.1</version></dependency>
  </dependencies>
</project>
XML
mvn -q -B dependency:copy-dependencies -DoutputDirectory=lib >mvn.log 2>&1 || { cat mvn.log; exit 1; }
cat >Reader.java <<'JAVA'
import io.grpc.internal.SpiffeUtil;
import java.util.TreeMap;

public class Reader {
    public static void main(String[] arguments) throws Exception {
        try {
            var roots = new TreeMap<String, Integer>();
            SpiffeUtil.loadTrustBundleFromFile(arguments[0]).getBundleMap().forEach((domain, bundle) -> roots.put(domain, bundle.size()));
            System.out.println("roots " + roots);
        } catch (IllegalArgumentException error) {
            System.out.println("refused: " + error.getMessage());
        }
    }
}
JAVA
javac -cp 'lib/*' Reader.java
cat >main.go <<'GO'
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc/credentials/tls/certprovider/pemfile"
)

func main() {
	provider, err := pemfile.NewProvider(pemfile.Options{SPIFFEBundleMapFile: os.Args[1], RefreshDuration: time.Second})
	if err != nil {
		panic(err)
	}
	patience, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	material, err := provider.KeyMaterial(patience)
	if err != nil {
		fmt.Println("no map:", err)
		return
	}
	m := material.SPIFFEBundleMap
	fmt.Printf("roots {partner=%d, td=%d}\n", len(m["partner"].X509Authorities()), len(m["td"].X509Authorities()))
}
GO
go mod init example.org/finding 2>/dev/null
go get google.golang.org/grpc/credentials/tls/certprovider/pemfile@v1.85.0 2>/dev/null
go mod tidy 2>/dev/null
go build -o reader .
go version; java -version 2>&1 | head -n 1
go list -m google.golang.org/grpc; ls lib | grep '^grpc-core'

same=yes
look() {  # what the map is, its file, what grpc-go and grpc-java say at their beginning
  with_go=$(./reader "$2" 2>/dev/null); with_java=$(java -cp 'lib/*:.' Reader "$2" 2>/dev/null)
  printf '%s:\n  grpc-go:   %s\n  grpc-java: %s\n' "$1" "$with_go" "$with_java"
  case $with_go in "$3"*) ;; *) same=no ;; esac
  case $with_java in "$4"*) ;; *) same=no ;; esac
}
both='roots {partner=1, td=1}'
look 'X.509 roots' x509.json "$both" "$both"
look 'a JWT key beside ours' jwt.json "$both" "refused: 'kid' parameter must not be set. Certificate loading for trust domain 'td' failed."
look "a JWT key beside the partner's" partners-jwt.json "$both" "refused: 'kid' parameter must not be set. Certificate loading for trust domain 'partner' failed."
look 'kty, use and x5c alone' least.json 'no map: context deadline exceeded' "$both"
[ "$same" = yes ] || { echo 'the behaviour has changed'; exit 1; }
