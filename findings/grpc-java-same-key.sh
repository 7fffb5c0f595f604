#!/usr/bin/env bash
# A certificate is renewed with the key that it had (cert-manager's rotationPolicy Never, a CA that is given the same CSR again):
# tls.crt is a new file, tls.key is not touched. A gRPC service in Java has both from files, by AdvancedTlsX509KeyManager.
#
# Guess:    the new certificate is there after the next look at the files, since one of them has changed.
# Happens:  grpc-java 1.85 reads the files only when the modification times of both have changed. The new certificate is never
#           read, however often it looks, and no line of the log says so; once the key's time has changed too, with the same bytes
#           in it, it is. The file watcher under xDS in the same release, and grpc-go's provider, read it at once.
# Matters:  the service presents the old certificate until that expires, while the file has a good one: an outage that a
#           restart mends. Have each certificate come with a new key, or write the key anew, as kubelet does with a volume.
# Source:   io.grpc:grpc-util and grpc-xds 1.85.1, Java 17, google.golang.org/grpc 1.78.0, cryptography 50.0.2.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cryptography==50.0.2
venv/bin/python - <<'PYTHON'
import datetime
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

now, key = datetime.datetime.now(datetime.timezone.utc), ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
with open("tls.key", "wb") as f:
    f.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
for serial in 1, 2:
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(serial)
            .not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256()))
    with open(f"{serial}.crt", "wb") as f: f.write(made.public_bytes(serialization.Encoding.PEM))
PYTHON

cat >pom.xml <<'XML'
<project>
  <modelVersion>4.0.0</modelVersion><groupId>org.example</groupId><artifactId>finding</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>io.grpc</groupId><artifactId>grpc-util</artifactId><version>1.85.1</version></dependency>
    <dependency><groupId>io.grpc</groupId><artifactId>grpc-xds</artifactId><version>1.85.1</version></dependency>
  </dependencies>
</project>
XML
mvn -q -B dependency:copy-dependencies -DoutputDirectory=lib >mvn.log 2>&1 || { cat mvn.log; exit 1; }
mkdir -p io/grpc/xds/internal/security/certprovider
cat >io/grpc/xds/internal/security/certprovider/Xds.java <<'JAVA'
package io.grpc.xds.internal.security.certprovider;

import io.grpc.Status;
import io.grpc.internal.TimeProvider;
import java.math.BigInteger;
import java.security.PrivateKey;
import java.security.cert.X509Certificate;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ScheduledExecutorService;

/** What the file watcher under xDS has read last. The class is for its own package only. */
public class Xds implements CertificateProvider.Watcher {
    BigInteger serial;
    final FileWatcherCertificateProvider watcher;

    public Xds(ScheduledExecutorService timer) {
        var distributor = new CertificateProvider.DistributorWatcher();
        distributor.addWatcher(this);
        watcher = new FileWatcherCertificateProvider(distributor, true, "tls.crt", "tls.key", "tls.crt", null, 600, timer, TimeProvider.SYSTEM_TIME_PROVIDER);
    }
    public Object look() { watcher.checkAndReloadCertificates(); return serial; }
    @Override public void updateCertificate(PrivateKey key, List<X509Certificate> chain) { serial = chain.get(0).getSerialNumber(); }
    @Override public void updateTrustedRoots(List<X509Certificate> roots) {}
    @Override public void updateSpiffeTrustMap(Map<String, List<X509Certificate>> map) {}
    @Override public void onError(Status error) { throw new IllegalStateException(error.getCause()); }
}
JAVA
cat >Looks.java <<'JAVA'
import io.grpc.util.AdvancedTlsX509KeyManager;
import io.grpc.xds.internal.security.certprovider.Xds;
import java.io.File;
import java.util.Scanner;
import java.util.concurrent.*;

/** Looks at the files once for each line of its input, and writes the serial numbers that are held then. */
public class Looks {
    public static void main(String[] arguments) throws Exception {
        // Instead of a minute's wait.
        var looks = new ConcurrentLinkedQueue<Runnable>();
        var timer = new ScheduledThreadPoolExecutor(1) {
            @Override public ScheduledFuture<?> scheduleWithFixedDelay(Runnable look, long first, long next, TimeUnit unit) {
                looks.add(look);
                return super.schedule(() -> {}, 0, unit);
            }
        };
        timer.setRemoveOnCancelPolicy(true);
        var manager = new AdvancedTlsX509KeyManager();
        manager.updateIdentityCredentials(new File("tls.crt"), new File("tls.key"), 1, TimeUnit.MINUTES, timer);
        var xds = new Xds(timer);
        for (var input = new Scanner(System.in); input.hasNextLine(); input.nextLine()) {
            looks.forEach(Runnable::run);
            var alias = manager.chooseServerAlias("EC", null, null);
            System.out.println(manager.getCertificateChain(alias)[0].getSerialNumber() + " " + xds.look());
        }
        System.exit(0);
    }
}
JAVA
javac -cp 'lib/*' Looks.java io/grpc/xds/internal/security/certprovider/Xds.java
cat >main.go <<'GO'
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc/credentials/tls/certprovider/pemfile"
)

// Writes the serial number that is held, until it is the one that a line of the input asks for, or a while has passed.
func main() {
	provider, err := pemfile.NewProvider(pemfile.Options{CertFile: "tls.crt", KeyFile: "tls.key", RefreshDuration: 100 * time.Millisecond})
	if err != nil {
		panic(err)
	}
	for input := bufio.NewScanner(os.Stdin); input.Scan(); {
		var held string
		for range 100 {
			material, err := provider.KeyMaterial(context.Background())
			if err != nil {
				panic(err)
			}
			if held = material.Certs[0].Leaf.SerialNumber.String(); held == input.Text() {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		fmt.Println(held)
	}
}
GO
go mod init example.org/finding 2>/dev/null
go get google.golang.org/grpc@v1.78.0 2>/dev/null
go mod tidy 2>/dev/null
go build -o with-go .
go version; java -version 2>&1 | head -n 1; ls lib | grep -E '^grpc-(util|xds)'

cat >scene.py <<'PYTHON'
import os, shutil, subprocess, sys

def replace(serial):
    """As a writer does it: a new file in the place of the old one, later than that."""
    shutil.copy(f"{serial}.crt", "new")
    os.utime("new", (serial * 1000, serial * 1000))
    os.rename("new", "tls.crt")

replace(1)
os.utime("tls.key", (1000, 1000))
programs = {"grpc-java (key manager, xDS)": ["java", "-cp", "lib/*:.", "Looks"], "grpc-go": ["./with-go"]}
running = {name: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name, command in programs.items()}

def held(serial):
    """What they hold, each after it has had time to see that serial number, which is looked for many times."""
    seen = {}
    for name, program in running.items():
        for _ in range(5):
            program.stdin.write(f"{serial}\n"); program.stdin.flush()
            seen[name] = program.stdout.readline().strip()
    return list(seen.values())

same = True
def look(what, serial, expected):
    global same
    seen = held(serial)
    print(f"{what}: {dict(zip(running, seen))}")
    same &= seen == expected

look("certificate 1", 1, ["1 1", "1"])
replace(2)
look("certificate 2, the key untouched", 2, ["1 2", "2"])
os.utime("tls.key", (2000, 2000))
look("the same key, touched", 2, ["2 2", "2"])
for program in running.values(): program.kill()
if not same: sys.exit("the behaviour has changed")
PYTHON
timeout 120 venv/bin/python scene.py
